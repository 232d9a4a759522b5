"""One file per upstream bug. Each holds its story, its gate, its probe, its patch and its reproduction, as ``FIX``."""
