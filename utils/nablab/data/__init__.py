"""Events: generators of toy samples (``toys``) and real open data (``opendata``)."""
