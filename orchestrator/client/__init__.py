"""The user's side of a cluster: what is submitted, how far it is, what happened, and what is wanted."""
