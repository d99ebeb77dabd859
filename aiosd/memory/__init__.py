"""Memory: what sessions were told and did, recalled by what it says."""
