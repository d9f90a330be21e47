"""What every stage uses: pseudonyms, paths, arrays, devices."""
