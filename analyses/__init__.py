"""The experiments that come with mechir, a folder for each paper; they are imported as `mechir.analyses`."""
