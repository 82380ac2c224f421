# One token per host: each key of `tokens` is a host's name, each value its enrollment token. Mint the tokens before
# `terraform apply`, and pass them in a file that is not committed: terraform apply -var-file=tokens.tfvars.json
variable "tokens" {
  type      = map(string)
  sensitive = true
}

variable "image" {
  type = string
}

variable "control_plane" {
  type = object({
    api_base_url   = string
    org_id         = string
    project_id     = string
    environment_id = string
  })
}

locals {
  # The names are no secret; the tokens stay one.
  names = nonsensitive(toset(keys(var.tokens)))

  user_data = {
    for name in local.names : name => templatefile("${path.module}/user-data.yaml.tftpl", {
      name             = name
      api_base_url     = var.control_plane.api_base_url
      org_id           = var.control_plane.org_id
      project_id       = var.control_plane.project_id
      environment_id   = var.control_plane.environment_id
      enrollment_token = var.tokens[name]
    })
  }
}

resource "aws_instance" "edge" {
  for_each      = local.names
  ami           = var.image
  instance_type = "t3.micro"
  user_data     = local.user_data[each.key]
  tags          = { Name = each.key }

  # A host is enrolled once: a token that is replaced later must not replace the host.
  lifecycle {
    ignore_changes = [user_data]
  }
}
