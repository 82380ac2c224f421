# For `packer init` of Packer 1.7 and newer; older ones have the plugin built in, and need this file removed.
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.0"
    }
  }
}
