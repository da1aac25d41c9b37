"""Language models under any training objective, on one loop and one metric."""
