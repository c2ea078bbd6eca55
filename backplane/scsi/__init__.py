"""The vocabulary of SCSI and its bytes, pure: designators, descriptors, parameter lists, status, sense."""
