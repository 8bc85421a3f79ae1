internal import Foundation

/// Fills floats with zeros.
func clear(_ floats: UnsafeMutablePointer<Float>, _ count: Int) { memset(floats, 0, count * 4) }
