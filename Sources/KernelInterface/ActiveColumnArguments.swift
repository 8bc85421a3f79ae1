/// Rows to find the columns of that are not 0 everywhere.
public struct ActiveColumnsArguments {
    public var x: UnsafePointer<Float>
    public var stride: Int
    public var rows: Int
    public var columns: Int
    /// Memory for `columns` numbers, which the kernel fills from the front, in ascending order.
    public var indices: UnsafeMutablePointer<Int32>

    public init(
        x: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, indices: UnsafeMutablePointer<Int32>
    ) {
        self.x = x
        self.stride = stride
        self.rows = rows
        self.columns = columns
        self.indices = indices
    }
}

/// Compact rows to multiply with listed columns of wide ones: y[:, t] = gate[:, columns[t]] · y[:, t]. Strides count elements.
public struct GateColumnsArguments {
    /// Entries of 0 give 0, whatever they meet.
    public var gate: UnsafePointer<Float>
    public var gateStride: Int
    public var columns: UnsafePointer<Int32>
    public var count: Int
    public var y: UnsafeMutablePointer<Float>
    public var yStride: Int
    public var rows: Int

    public init(
        gate: UnsafePointer<Float>, gateStride: Int, columns: UnsafePointer<Int32>, count: Int, y: UnsafeMutablePointer<Float>,
        yStride: Int, rows: Int
    ) {
        self.gate = gate
        self.gateStride = gateStride
        self.columns = columns
        self.count = count
        self.y = y
        self.yStride = yStride
        self.rows = rows
    }
}
