"""What every room uses: files written whole, images read in one way, extras that may be missing."""
