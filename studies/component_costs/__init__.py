"""FuseMax against FLAT with everything that costs."""
