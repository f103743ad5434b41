"""The paper's user study (Appendix D): volunteers choose between two results, side by side."""
