"""Build, save and publish the messages of tasks."""
