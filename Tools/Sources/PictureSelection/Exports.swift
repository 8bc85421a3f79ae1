@_exported public import PS3
