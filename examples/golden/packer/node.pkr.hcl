# ssh-keygen -q -t ed25519 -N '' -f key
# packer init . && packer build -var bundle=node.bundle -var nodeprep=./nodeprep -var ssh_private_key_file=key \
#   -var image=URL -var image_checksum=sha512:... .
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1.0"
    }
  }
}

variable "bundle" {
  type = string
}

variable "nodeprep" {
  type = string
}

# A cloud image of your distribution, and its checksum.
variable "image" {
  type = string
}

variable "image_checksum" {
  type = string
}

variable "ssh_username" {
  type    = string
  default = "debian"
}

# A key pair for this build alone: FILE and FILE.pub. provision.sh takes it out of the image again.
variable "ssh_private_key_file" {
  type = string
}

source "qemu" "node" {
  iso_url          = var.image
  iso_checksum     = var.image_checksum
  disk_image       = true
  disk_size        = "8G"
  format           = "qcow2"
  headless         = true
  ssh_username     = var.ssh_username
  ssh_timeout      = "10m"

  ssh_private_key_file = var.ssh_private_key_file

  shutdown_command = "sudo systemctl poweroff"
  # The builder's own seed for cloud-init, with the key that Packer logs in with.
  cd_label = "cidata"
  cd_content = {
    "meta-data" = ""
    "user-data" = "#cloud-config\nssh_authorized_keys: [\"${trimspace(file("${var.ssh_private_key_file}.pub"))}\"]\n"
  }
}

build {
  sources = ["source.qemu.node"]

  provisioner "file" {
    source      = var.nodeprep
    destination = "/tmp/nodeprep"
  }

  provisioner "file" {
    source      = var.bundle
    destination = "/tmp/node.bundle"
  }

  provisioner "shell" {
    script          = "${path.root}/provision.sh"
    execute_command = "chmod +x {{ .Path }} && sudo env NODEPREP=/tmp/nodeprep BUNDLE=/tmp/node.bundle {{ .Path }}"
  }
}
