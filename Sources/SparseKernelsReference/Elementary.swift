internal import Foundation

// Foundation's functions under names without overloads.

func exponential(_ x: Double) -> Double { Foundation.exp(x) }
func logarithm(_ x: Double) -> Double { Foundation.log(x) }
func hyperbolicTangent(_ x: Double) -> Double { Foundation.tanh(x) }
func cosine(_ x: Double) -> Double { Foundation.cos(x) }
func sine(_ x: Double) -> Double { Foundation.sin(x) }
func complementaryError(_ x: Double) -> Double { Foundation.erfc(x) }
