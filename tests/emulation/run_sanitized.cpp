// A program that runs every operator's kernels under the sanitizers.
#include "sanitized.h"

int main() {
  for (const auto run : Run::all()) {
    run();
  }
  std::printf("%s\n", failures == 0 ? "nothing found" : "FAILED");
  return failures != 0;
}
