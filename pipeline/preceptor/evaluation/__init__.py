"""What a system is worth: metrics with intervals, baselines, the gate and the report."""
