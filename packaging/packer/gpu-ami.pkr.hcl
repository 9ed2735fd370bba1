# An AMI with driver, CUDA and cuDNN in it, baked on a cheap machine without GPU:
#
#   packer init . && packer build -var deb=../../dist/gpu-bootstrap_0.1.0_amd64.deb .
#
# image.toml beside this file says for which instance types. Never run on AWS yet (docs/proof.md).
packer {
  required_plugins {
    amazon = {
      version = ">= 1.3.0"
      source  = "github.com/hashicorp/amazon"
    }
  }
}

variable "deb" {
  type        = string
  description = "The package that packaging/deb has built."
}

variable "region" {
  type    = string
  default = "us-east-1"
}

variable "instance_type" {
  type        = string
  default     = "c7i.2xlarge"
  description = "What bakes: of the architecture of the types in image.toml. More cores bake faster."
}

source "amazon-ebs" "gpu" {
  region        = var.region
  instance_type = var.instance_type
  ami_name      = "gpu-bootstrap-${formatdate("YYYYMMDD-hhmmss", timestamp())}"
  ssh_username  = "ubuntu"

  source_ami_filter {
    owners      = ["099720109477"] # Canonical
    most_recent = true
    filters = {
      name                = "ubuntu/images/hvm-ssd*/ubuntu-jammy-22.04-amd64-server-*"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
  }

  # The toolkit alone has 8 GB.
  launch_block_device_mappings {
    device_name           = "/dev/sda1"
    volume_size           = 30
    volume_type           = "gp3"
    delete_on_termination = true
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }

  imds_support = "v2.0"
  tags = {
    Name = "gpu-bootstrap"
  }
}

build {
  sources = ["source.amazon-ebs.gpu"]

  provisioner "file" {
    source      = var.deb
    destination = "/tmp/gpu-bootstrap.deb"
  }

  provisioner "file" {
    source      = "${path.root}/image.toml"
    destination = "/tmp/image.toml"
  }

  # The unit stays off while the image is baked: after a reboot it would hold the lock of the run below.
  provisioner "shell" {
    inline = [
      "cloud-init status --wait >/dev/null || true",
      "sudo install -D -m 0644 /tmp/image.toml /etc/gpu-bootstrap/50-baking.toml",
      "sudo touch /etc/gpu-bootstrap/disabled",
      "sudo apt-get update -qq",
      "sudo DEBIAN_FRONTEND=noninteractive apt-get install -qq -y /tmp/gpu-bootstrap.deb",
      "gpu-bootstrap config check /etc/gpu-bootstrap/50-baking.toml",
    ]
  }

  # Exit code 10: the work goes on after a reboot.
  provisioner "shell" {
    expect_disconnect = true
    inline = [
      "status=0",
      "sudo gpu-bootstrap run --no-reboot || status=$?",
      "if [ $status = 10 ]; then sudo systemctl reboot; sleep 60; fi",
      "exit $status",
    ]
    valid_exit_codes = [0, 10]
  }

  # Nothing to do where no reboot was needed; whatever is not 0 now fails the build.
  provisioner "shell" {
    pause_before = "30s"
    inline       = ["sudo gpu-bootstrap run --no-reboot"]
  }

  # The last thing of all: nobody can log in any more. It refuses an image whose instances would have no network, and says what
  # it leaves. cloud-init makes host keys and lets the key pair in on the next instance; without cloud-init,
  # gpu-bootstrap-early.service does.
  provisioner "shell" {
    inline = [
      "sudo rm -f /etc/gpu-bootstrap/50-baking.toml /etc/gpu-bootstrap/disabled",
      "sudo gpu-bootstrap seal --shell-history",
    ]
  }
}
