"""One rank's process: the shell that runs cells under an initialised process group."""
