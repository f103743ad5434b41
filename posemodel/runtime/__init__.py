"""What every program needs: errors, files, weights, devices, processes, checkpoints."""
