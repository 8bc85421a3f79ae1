// Conversion of rows of any storage type to adjacent floats, for kernels whose tiles read floats.

public import KernelInterface

extension Kernels {
    /// Copies rows to adjacent floats, from row `first` on.
    @inline(never)
    public static func stageRows(
        _ operand: RowOperand, first: Int, count: Int, channels: Int, into destination: UnsafeMutablePointer<Float>
    ) {
        if let pages = operand.pages {
            stagePages(pages.pointee, operand, first: first, count: count, channels: channels, into: destination)
            return
        }
        let whole = channels / laneCount * laneCount
        for row in 0..<count {
            let target = destination + row * channels
            let start = (first + row) * operand.stride
            switch operand.type {
            case .float32:
                let source = operand.base.assumingMemoryBound(to: Float.self) + start
                for x in 0..<whole / laneCount { store(load(source + x * laneCount), target + x * laneCount) }
            case .float16:
                let source = operand.base.assumingMemoryBound(to: UInt16.self) + start
                for x in 0..<whole / laneCount { store(loadHalf(source + x * laneCount), target + x * laneCount) }
            case .bfloat16:
                let source = operand.base.assumingMemoryBound(to: UInt16.self) + start
                for x in 0..<whole / laneCount { store(loadBFloat16(source + x * laneCount), target + x * laneCount) }
            }
            for channel in whole..<channels { target[channel] = element(operand, first + row, channel) }
        }
    }
}

/// Copies tokens of a cache, in runs that are adjacent in a page.
@inline(never)
private func stagePages(
    _ pages: PagedRows, _ operand: RowOperand, first: Int, count: Int, channels: Int,
    into destination: UnsafeMutablePointer<Float>
) {
    var row = 0
    while row < count {
        let index = operand.first + (first + row) * operand.stride
        let token = index < pages.gapStart ? index : index + pages.gap
        let page = token / pages.pageSize
        let offset = token - page * pages.pageSize
        var run = 1
        if operand.stride == 1 {
            run = minimum(count - row, pages.pageSize - offset)
            if index < pages.gapStart { run = minimum(run, pages.gapStart - index) }
        }
        let slot = Int(pages.pages[page]) * pages.pageSize + offset
        Kernels.loadTokens(pages.tokens, slot: slot, count: run, into: destination + row * channels)
        row += run
    }
}

/// One element of a row as a float.
@_transparent
func element(_ operand: RowOperand, _ row: Int, _ channel: Int) -> Float {
    if let pages = operand.pages { return pagedElement(pages.pointee, operand, row, channel) }
    let index = row * operand.stride + channel
    switch operand.type {
    case .float32: return operand.base.assumingMemoryBound(to: Float.self)[index]
    case .float16: return widenHalf(operand.base.assumingMemoryBound(to: UInt16.self)[index])
    case .bfloat16: return Float(bitPattern: UInt32(operand.base.assumingMemoryBound(to: UInt16.self)[index]) << 16)
    }
}

@inline(never)
private func pagedElement(_ pages: PagedRows, _ operand: RowOperand, _ row: Int, _ channel: Int) -> Float {
    let index = operand.first + row * operand.stride
    let token = index < pages.gapStart ? index : index + pages.gap
    let slot = Int(pages.pages[token / pages.pageSize]) * pages.pageSize + token % pages.pageSize
    return tokenElement(pages.tokens, slot: slot, channel)
}
