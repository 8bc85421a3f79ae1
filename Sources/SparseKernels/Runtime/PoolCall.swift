/// One call of an operator, cut into tasks that threads of a pool perform concurrently in any order.
///
/// A call is a struct of operands: pointers, numbers and plans. Tasks may all read it, and may write only to memory
/// that no other task uses.
package protocol PoolCall {
    /// Performs one task.
    /// - Parameters:
    ///   - task: its number, from 0.
    ///   - scratch: memory of the requested size, 64-byte aligned, with undefined contents.
    func perform(task: Int, scratch: UnsafeMutableRawPointer)

    /// Performs one task of the call at an address. This is a requirement, with a single implementation, so that each call type
    /// has its own function, which the pool reaches through the type. A closure would allocate in debug builds.
    static func perform(at address: UnsafeRawPointer, task: Int, scratch: UnsafeMutableRawPointer)
}

extension PoolCall {
    package static func perform(at address: UnsafeRawPointer, task: Int, scratch: UnsafeMutableRawPointer) {
        address.assumingMemoryBound(to: Self.self).pointee.perform(task: task, scratch: scratch)
    }
}
