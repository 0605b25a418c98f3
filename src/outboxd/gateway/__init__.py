"""What an agent needs beside its other rooms to be a gateway: who may hand events
in over TCP, and how other programs' webhooks become events."""
