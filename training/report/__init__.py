"""Pages and pictures that runs, evaluations and commands draw."""
