"""The agent put together: started, reloaded, kept up, stopped."""
