# A launch template whose instances get their GPU stack by the user-data stub, and a group that waits for it. Render the stub
# first; it names where your binary lies, and its sum:
#
#   gpu-bootstrap user-data render --url "$URL" --sha256 "$SUM" --config gpu.toml >user-data
#   terraform init && terraform apply -var image_id="$AMI" -var 'subnet_ids=["subnet-…"]'
terraform {
  required_version = ">= 1.3"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "image_id" {
  type        = string
  description = "A stock AMI of Ubuntu or Debian."
}

variable "instance_type" {
  type    = string
  default = "g5.xlarge"
}

variable "subnet_ids" {
  type        = list(string)
  description = "Subnets with a way out."
}

variable "size" {
  type    = number
  default = 1
}

# Leave out of the policy what you do not switch on; docs/fleet.md explains each right.
resource "aws_iam_role" "gpu" {
  name_prefix = "gpu-bootstrap-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "gpu" {
  role   = aws_iam_role.gpu.id
  policy = file("${path.module}/../../iam-policy.json")
}

resource "aws_iam_instance_profile" "gpu" {
  name_prefix = "gpu-bootstrap-"
  role        = aws_iam_role.gpu.name
}

resource "aws_launch_template" "gpu" {
  name_prefix   = "gpu-bootstrap-"
  image_id      = var.image_id
  instance_type = var.instance_type
  user_data     = filebase64("${path.module}/user-data")

  iam_instance_profile {
    arn = aws_iam_instance_profile.gpu.arn
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }

  # The image's root device; the toolkit alone has 8 GB.
  block_device_mappings {
    device_name = "/dev/sda1"
    ebs {
      volume_size = 30
      volume_type = "gp3"
    }
  }
}

# Name and hook are those of gpu.toml.
resource "aws_autoscaling_group" "gpu" {
  name                = "gpu-nodes"
  min_size            = 0
  max_size            = var.size
  desired_capacity    = var.size
  vpc_zone_identifier = var.subnet_ids

  launch_template {
    id      = aws_launch_template.gpu.id
    version = aws_launch_template.gpu.latest_version
  }

  initial_lifecycle_hook {
    name                 = "gpu-ready"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = 900
    default_result       = "ABANDON"
  }
}
