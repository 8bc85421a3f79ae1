/// One call of an operator, cut into tasks that threads of a pool perform in any order and at the same time.
///
/// A call is a struct of operands: pointers, numbers and plans. Tasks may read it concurrently and may write only where they are
/// disjoint.
package protocol PoolCall {
    /// Performs one task.
    /// - Parameters:
    ///   - task: its number, from 0.
    ///   - scratch: memory of the size that the call asked for, 64-byte aligned, with undefined contents.
    func perform(task: Int, scratch: UnsafeMutableRawPointer)

    /// Performs one task of the call that is stored at an address. A requirement with one implementation, so that every call has a
    /// function of its own that the pool reaches through the type: no closure, and so no allocation, in debug builds either.
    static func perform(at address: UnsafeRawPointer, task: Int, scratch: UnsafeMutableRawPointer)
}

extension PoolCall {
    package static func perform(at address: UnsafeRawPointer, task: Int, scratch: UnsafeMutableRawPointer) {
        address.assumingMemoryBound(to: Self.self).pointee.perform(task: task, scratch: scratch)
    }
}
