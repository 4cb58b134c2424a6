"""What the machines of Firecracker and QEMU share: a virtual machine in one process, with a kernel of its own."""
