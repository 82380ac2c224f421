# packer init . && packer build -var package=dist/byteor-firstboot_0.2.0_all.deb -var defaults=firstboot.yaml .
# A qcow2 image from a distribution's cloud image. The user data below is the builder's own, never a host's: it holds no
# enrollment token, and `provision` removes what cloud-init kept of it.
variable "package" {
  type = string
}

variable "defaults" {
  type = string
}

variable "base_url" {
  type    = string
  default = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2"
}

variable "base_checksum" {
  type    = string
  default = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
}

source "qemu" "image" {
  iso_url          = var.base_url
  iso_checksum     = var.base_checksum
  disk_image       = true
  disk_size        = "4G"
  format           = "qcow2"
  headless         = true
  output_directory = "output"
  vm_name          = "image.qcow2"
  http_directory   = "http"
  # cloud-init reads user-data and meta-data from the directory `http`, beside this file.
  qemuargs         = [["-smbios", "type=1,serial=ds=nocloud;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  ssh_username     = "debian"
  ssh_password     = "builder"
  ssh_timeout      = "15m"
  shutdown_command = "sudo systemctl poweroff"
}

build {
  sources = ["source.qemu.image"]

  provisioner "file" {
    sources     = [var.package, var.defaults, "${path.root}/../provision"]
    destination = "/tmp/"
  }

  # cloud-init has to be done before its state is removed.
  provisioner "shell" {
    inline = [
      "cloud-init status --wait",
      "sudo sh /tmp/provision /tmp/${basename(var.package)} /tmp/${basename(var.defaults)}",
      "sudo passwd --lock debian && sudo rm -f /etc/ssh/sshd_config.d/50-cloud-init.conf",
    ]
  }
}
