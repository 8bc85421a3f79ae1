@_exported import Communication
