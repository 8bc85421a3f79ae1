/// The memory of a backward pass over ranks: operands of others, sums, and messages. Rows are those of tokens, with the heads of a rank
/// side by side.
final class GradientBuffers {
    /// What goes to and comes from the ranks of the group, by ranks. Not used in groups of one.
    let querySent, queryReceived, keySent: MessageBuffer
    /// The LSE of received queries, `[local heads, rows]`.
    let logSumExp: MessageBuffer
    /// Keys and values of this step and of the next one: heads of K, then heads of V.
    let keys: [MessageBuffer]
    /// Sums of the gradients of the queries.
    let queryGradient: MessageBuffer
    /// Sums of the gradients of visitors, of this step and of the next one, and those that come home.
    let visiting: [MessageBuffer]
    let home: MessageBuffer
    /// This rank's part of the gradients of a visitor.
    let partial: MessageBuffer
    /// Gradients of one block and slice of heads, and the LSE of its queries.
    let blockQueries, blockKeys, blockLogSumExp: MessageBuffer
    /// Gradients of this rank's tokens, by the ranks of the group. Not used in groups of one.
    let queryReturned, keyReturned: MessageBuffer
    let byteCount: Int

    init(
        _ schedule: GradientSchedule, _ heads: GradientHeads, ownCount: Int, slices: Int
    ) throws(SparseKernelsError) {
        var total = 0
        func buffer(_ rows: Int, _ columns: Int, _ isUsed: Bool = true) throws(SparseKernelsError) -> MessageBuffer {
            let (count, overflow) = rows.multipliedReportingOverflow(by: columns)
            let buffer = try MessageBuffer(of: Float.self, count: isUsed ? overflow ? .max : count : 0)
            total += buffer.byteCount
            return buffer
        }
        let (exchanges, rotates) = (heads.ulysses > 1, schedule.steps.count > 1)
        let (rows, most, block) = (schedule.own.count, schedule.largestCount, schedule.largestBlock)
        querySent = try buffer(ownCount * heads.ulysses, heads.queryRow, exchanges)
        queryReceived = try buffer(rows, heads.queryRow, exchanges)
        keySent = try buffer(ownCount * heads.ulysses, heads.keyRow, exchanges)
        logSumExp = try buffer(rows, heads.localQueryHeads, exchanges)
        keys = [try buffer(most, heads.keyRow), try buffer(most, heads.keyRow, rotates)]
        queryGradient = try buffer(rows, heads.queryGradientRow)
        visiting = [try buffer(most, heads.keyRow, rotates), try buffer(most, heads.keyRow, rotates)]
        home = try buffer(rows, heads.keyRow)
        partial = try buffer(most, heads.keyRow, rotates)
        blockQueries = try buffer(block.queries, heads.queryGradientRow / slices)
        blockKeys = try buffer(block.keys, heads.keyRow / slices)
        blockLogSumExp = try buffer(block.queries, heads.localQueryHeads / slices)
        queryReturned = try buffer(ownCount * heads.ulysses, heads.queryGradientRow, exchanges)
        keyReturned = try buffer(ownCount * heads.ulysses, heads.keyRow, exchanges)
        byteCount = total
    }
}
