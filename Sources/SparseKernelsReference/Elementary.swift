internal import Foundation

// Foundation's functions under names without overloads.

func exponential(_ x: Double) -> Double { Foundation.exp(x) }
func logarithm(_ x: Double) -> Double { Foundation.log(x) }
func hyperbolicTangent(_ x: Double) -> Double { Foundation.tanh(x) }
