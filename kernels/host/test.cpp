// Checks the kernels in emulation against f64 references. Arguments: none, or `--list` for the kernels' launches, or the
// number of a bug to plant (in a build with PLANTED_BUGS).

#include <chrono>

#include "test.h"

#if defined(PLANTED_BUGS)
int planted_bug = 0;
#endif

namespace {

void list() {
    for (const auto& [name, kernel] : emulate::kernels()) {
        std::printf("| `%s` | %u | %zu |\n", name.c_str(), kernel.threads, kernel.shared);
    }
}

void run(const char* name, void (*tests)()) {
    const auto start = std::chrono::steady_clock::now();
    const int before = test::tally.checks;
    tests();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::printf("%s: %d checks, %.1f s\n", name, test::tally.checks - before, time.count());
    std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1 && std::string(arguments[1]) == "--list") {
        list();
        return 0;
    }
#if defined(PLANTED_BUGS)
    if (count > 1) planted_bug = std::atoi(arguments[1]);
#endif
    run("emulator", test::emulator);
    run("similarity", test::similarity);
    run("reference gradients", test::reference_gradients);
    run("decode", test::decode);
    run("forward", test::forward);
    run("backward", test::backward);
    for (const auto& [kind, worst] : test::tally.worst) std::printf("worst %s: %.3g\n", kind.c_str(), worst);
    std::printf("%d checks, %d failed\n", test::tally.checks, test::tally.failures);
    return test::tally.failures ? 1 : 0;
}
