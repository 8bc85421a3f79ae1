import FrameFusion
import Testing

@Suite struct FrameFusionTests {}
