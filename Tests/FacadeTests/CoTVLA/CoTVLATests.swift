import CoTVLA
import Testing

@Suite struct CoTVLATests {}
