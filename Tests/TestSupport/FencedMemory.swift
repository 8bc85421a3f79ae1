import Foundation
package import SparseKernels

/// Memory with an inaccessible page directly before or after it, so that an access outside it faults on that side.
package final class FencedMemory<Element: TensorElement> {
    package let elements: UnsafeMutableBufferPointer<Element>
    private let mapping: UnsafeMutableRawPointer
    private let byteCount: Int

    /// - Parameter fencesEnd: whether the inaccessible page is after the last element, and not before the first one.
    package init(_ values: [Element], fencesEnd: Bool) {
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let used = values.count * MemoryLayout<Element>.stride
        let middle = (used + page - 1) / page * page
        byteCount = middle + 2 * page
        let memory = mmap(nil, byteCount, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let memory, memory != MAP_FAILED, mprotect(memory + page, middle, PROT_READ | PROT_WRITE) == 0 else {
            preconditionFailure("no memory")
        }
        mapping = memory
        let start = memory + page + (fencesEnd ? middle - used : 0)
        elements = UnsafeMutableBufferPointer(
            start: start.bindMemory(to: Element.self, capacity: values.count), count: values.count)
        _ = elements.initialize(from: values)
    }

    deinit { munmap(mapping, byteCount) }
}
