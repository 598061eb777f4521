"""Files of other people's servers: verified, resumable, locked, atomic. No torch; knows neither plans nor settings."""
