"""What runs in the notebook kernel's process: options, rendezvous, the I/O thread, Cluster, magics."""
