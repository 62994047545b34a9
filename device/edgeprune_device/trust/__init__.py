"""Who is trusted, and what a signature covers: keys, signatures, bundles and their manifests."""
