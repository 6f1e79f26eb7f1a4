"""The `report` stage: arms of one or several sweeps compared over seeds, from the files on the volume."""
