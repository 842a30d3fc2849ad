"""What trained networks have learnt."""
