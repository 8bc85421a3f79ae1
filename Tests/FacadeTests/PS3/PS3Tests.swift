import PS3
import Testing

@Suite struct PS3Tests {}
