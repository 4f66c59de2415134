"""What somebody would use instead of this gateway, set up as well as we know how."""
