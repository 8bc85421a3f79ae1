// Offset and scale of a row of 4-bit codes with nearly the least squared error that codes 0…15 can have:
//
//     minimise Σ (x − s·code − m)²,   code = clamp(nearest((x − m)/s), 0…15)
//
// For fixed codes, the best s and m are the line through the points (code, x). For a fixed line, the best codes are the nearest
// ones. So a few lines to begin with, which cut off a part of the range at either end, are refitted to their codes, and the best
// one three times more (Lloyd's iteration). Against the line from the smallest to the largest element, this takes 15 to 20 percent
// off the squared error of rows of 64 channels; a search over 81 lines with five refits takes off one percent more.
//
// Elements are taken in 4096 steps of the range. Then all sums are whole numbers below 2²⁴, exact in single precision in any
// order, and the fit is the same for vectors of any width. What follows from the sums is computed in double precision.

import KernelInterface

/// Steps of the range that elements are rounded to. 15 · 4096 · 256 channels is below 2²⁴.
private let rangeSteps: Float = 4096

/// A line from codes to elements, in steps of the range above the smallest element.
private struct CodeLine {
    var offset = 0.0
    var scale = 0.0
    /// How much of the variance of the row the codes that it was fitted to explain.
    var gain = -1.0
}

/// The sums over a row of its codes, their squares, and their products with the elements.
private struct CodeSums {
    var codes = 0.0
    var squares = 0.0
    var products = 0.0
}

/// A scale and an offset in half precision for a row with 4-bit codes.
///
/// - Parameters:
///   - row: its elements.
///   - low: the smallest one, and `high` the largest one.
///   - steps: scratch of `padded(channels)` floats.
///   - scale: a scale that is good enough, which is replaced by a better one. So is `offset`.
@inline(never)
func fitCodes(
    _ row: UnsafePointer<Float>, low: Float, high: Float, channels: Int, steps: UnsafeMutablePointer<Float>,
    scale: inout UInt16, offset: inout UInt16
) {
    let range = high - low
    // Scales of other rows are subnormal, zero or infinite, or they have one value.
    if !(range > 0x1p-30 && range < 0x1p30) || channels < 3 { return }
    let total = countSteps(row, low: low, inverse: rangeSteps / range, channels: channels, into: steps)
    let count = Double(channels)

    var best = CodeLine()
    for bottom in 0..<3 {
        for top in 0..<3 {
            // 0, 5 or 10 percent of the range are cut off.
            let cut = CodeLine(
                offset: Double(204 &* bottom), scale: Double(Int(rangeSteps) &- 204 &* (bottom &+ top)) / 15, gain: -1)
            refit(cut, steps, channels, count: count, total: total, best: &best)
        }
    }
    for _ in 0..<3 { refit(best, steps, channels, count: count, total: total, best: &best) }
    if best.gain < 0 { return }

    // The halves next to the line, if their error is below that of the halves that were given.
    let unit = Double(range) / Double(rangeSteps)
    let fittedScale = finiteHalfNear(Float(best.scale * unit))
    let fittedOffset = finiteHalfNear(Float(Double(low) + best.offset * unit))
    if fittedScale == 0 { return }
    let fitted = error(fittedScale, fittedOffset, low, unit, steps, channels, count: count, total: total)
    if scale != 0 && error(scale, offset, low, unit, steps, channels, count: count, total: total) <= fitted { return }
    scale = fittedScale
    offset = fittedOffset
}

/// Stores elements as whole steps above the smallest one, and returns their sum.
@inline(never)
private func countSteps(
    _ row: UnsafePointer<Float>, low: Float, inverse: Float, channels: Int, into steps: UnsafeMutablePointer<Float>
) -> Double {
    // Far below all codes: what is behind the row has code 0, and adds nothing to any sum.
    let padded = TokenLayout.padded(channels)
    var x = 0
    while x < padded {
        let whole = nearest(minimum((load(row + x) - splat(low)) * splat(inverse), splat(rangeSteps)))
        store(floats(whole), steps + x)
        x += laneCount
    }
    var total: Float = 0
    for channel in 0..<channels { total += steps[channel] }
    for channel in channels..<padded { steps[channel] = -0x1p30 }
    return Double(total)
}

/// The sums of the codes that a line has.
@inline(never)
private func sums(_ steps: UnsafePointer<Float>, _ channels: Int, offset: Float, inverse: Float) -> CodeSums {
    var (codes, squares, products) = (splat(0), splat(0), splat(0))
    addCodes(steps, channels, offset: offset, inverse: inverse, codes: &codes, squares: &squares, products: &products)
    return CodeSums(codes: Double(laneSum(codes)), squares: Double(laneSum(squares)), products: Double(laneSum(products)))
}

/// Adds the codes of a line lane by lane. What adds the lanes is not inlined here, because the compiler would then keep parts of the
/// registers apart throughout the loop.
@inline(never)
private func addCodes(
    _ steps: UnsafePointer<Float>, _ channels: Int, offset: Float, inverse: Float, codes: inout Vector, squares: inout Vector,
    products: inout Vector
) {
    let (first, factor, bottom, top) = (splat(offset), splat(inverse), splat(0), splat(15))
    // Adding and subtracting it rounds to whole numbers.
    let magic = splat(12_582_912)
    var (sum, squareSum, productSum) = (splat(0), splat(0), splat(0))
    var x = 0
    while x < channels {
        let element = load(steps + x)
        let code = (minimum(maximum((element - first) * factor, bottom), top) + magic) - magic
        sum += code
        squareSum = multiplyAdd(code, code, squareSum)
        productSum = multiplyAdd(code, element, productSum)
        x += laneCount
    }
    codes = sum
    squares = squareSum
    products = productSum
}

/// Fits a line to the codes of another one, and keeps it if it is the best so far.
@inline(never)
private func refit(
    _ line: CodeLine, _ steps: UnsafePointer<Float>, _ channels: Int, count: Double, total: Double, best: inout CodeLine
) {
    let sums = sums(steps, channels, offset: Float(line.offset), inverse: 1 / Float(line.scale))
    // Whole numbers below 2⁵³.
    let spread = count * sums.squares - sums.codes * sums.codes
    let common = count * sums.products - sums.codes * total
    if !(spread > 0 && common > 0) { return }
    let gain = common * common / spread
    if !(gain > best.gain) { return }
    let scale = common / spread
    best = CodeLine(offset: (total - scale * sums.codes) / count, scale: scale, gain: gain)
}

/// The squared error of a row with a scale and an offset, in squared steps, but for the sum of the squared elements.
@inline(never)
private func error(
    _ scale: UInt16, _ offset: UInt16, _ low: Float, _ unit: Double, _ steps: UnsafePointer<Float>, _ channels: Int,
    count: Double, total: Double
) -> Double {
    let scale = Double(widenHalf(scale)) / unit
    let offset = (Double(widenHalf(offset)) - Double(low)) / unit
    let sums = sums(steps, channels, offset: Float(offset), inverse: 1 / Float(scale))
    return scale * (scale * sums.squares - 2 * sums.products + 2 * offset * sums.codes) + offset * (offset * count - 2 * total)
}

/// The finite half next to a number.
@_transparent
private func finiteHalfNear(_ value: Float) -> UInt16 {
    let bits = narrowToHalf(value)
    return bits & 0x7fff == 0x7c00 ? bits &- 1 : bits
}
