import NVILA
import Testing

@Suite struct NVILATests {}
