"""What Emberbox does to the host, for images and machines alike: helper processes, run directories, cgroups."""
