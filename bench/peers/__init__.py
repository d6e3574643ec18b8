"""What runs inside the peers' own processes: their workers, and what hands work to them."""
