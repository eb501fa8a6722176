"""The commands of `hypernoise`, one file each."""
