import Foundation

/// The memory that is available without swapping.
enum FreeMemory {
    /// The estimate of the Linux kernel; elsewhere half of the machine's memory.
    static let byteCount: Int = {
        let meminfo = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8)) ?? ""
        for line in meminfo.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            let words = line.split(separator: " ")
            if words.count > 1, let kibibytes = Int(words[1]) { return kibibytes << 10 }
        }
        return Int(clamping: ProcessInfo.processInfo.physicalMemory / 2)
    }()
}
