"""What demo.py is made of: processes, traffic, measuring and showing. No part of the service."""
