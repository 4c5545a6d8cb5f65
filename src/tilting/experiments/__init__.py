"""Running methods: configuration, resumable folders, reports. The only room below the command line that writes files."""
